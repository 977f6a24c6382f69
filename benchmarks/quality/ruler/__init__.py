"""RULER's 13 tasks (arXiv 2404.06654), made for any tokenizer and length, with the question left out of the context."""
