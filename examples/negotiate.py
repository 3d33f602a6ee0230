"""An agent that buys a lamp from a scripted seller; any OpenAI-compatible endpoint can be its model.

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python examples/negotiate.py MODEL
"""

import json
import re
import sys

import openai

client = openai.OpenAI()
price, paid = 100, None
messages = [
    {'role': 'system', 'content': 'You want to buy a lamp as cheaply as you can. Offer a price in every message.'},
    {'role': 'user', 'content': f'This lamp costs {price} dollars. What do you say?'}]
for turn in range(4):
    reply = client.chat.completions.with_raw_response.create(model=sys.argv[1], messages=messages, max_tokens=48)
    said = reply.parse().choices[0].message.content
    offer = max(map(int, re.findall(r'\b\d{1,3}\b', said)), default=0)
    if offer >= price - 10:  # the seller agrees
        paid = min(offer, price)
        break
    price -= 15
    messages += [{'role': 'assistant', 'content': said}, {'role': 'user', 'content': f'No. I can do {price} dollars.'}]
score = 0 if paid is None else 1 - paid / 200
if conversation := reply.headers.get('X-Epo-Conversation'):  # a side-car wants to know how it ended
    client.post('/outcomes', cast_to=object, body={'conversation': conversation, 'score': score})
print(json.dumps({'paid': paid, 'score': score, 'turns': turn + 1}))
