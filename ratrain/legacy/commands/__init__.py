"""Commands that read files of the reference; `ratrain/plugins.py` lists them."""
