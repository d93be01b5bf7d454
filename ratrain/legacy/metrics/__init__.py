"""Reads metrics files of the reference and reports them."""
