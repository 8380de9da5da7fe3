"""Networks with timm's constructors, for code that inherits from them; a file for each family."""
