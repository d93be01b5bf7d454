"""Kept results of the benches, a line of JSON each, and the page that draws them."""
