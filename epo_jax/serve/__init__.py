"""The strategist at work: a library call, an OpenAI-compatible server, and a side-car for agents that exist already.

1. `loading.py` loads a model or the strategist of a run, with its tokenizer and its chat template.
2. `slots.py` holds the compiled programs: a session whose rows are slots with settings of their own.
3. `engine.py` drives them in one thread: slots are refilled as requests come and go, and prefixes are read once.
4. `views.py` says what a strategist reads: the prompts of the environments it was trained in, or the general one.
5. `strategist.py` is the library call: sessions that grow with the conversation, with exact ids and log-probabilities.
6. `protocol.py` checks requests, `completions.py` answers them by the engine, whole or as a stream (`texts.py`).
7. `app.py` is the HTTP server: routes, limits, keys, metrics; `listening.py` starts it.
8. `sidecar.py` is the proxy: it finds the conversation of a request (`conversations.py`) and inserts a strategy.
9. `relay.py` forwards the request to the upstream model, and its answer back, byte by byte.
10. `recording.py` keeps conversations and writes closed ones as raw rows; `results.py` compares the arms.
"""
