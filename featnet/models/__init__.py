"""One file per family; ``index.txt`` says which variant is where. Imports no family."""
