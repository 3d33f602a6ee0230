"""WebShop (Yao et al., 2022): a text-based shop with real products and shopping instructions."""
