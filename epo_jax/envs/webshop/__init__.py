"""WebShop: a shop of real products, and instructions for what to buy there."""
