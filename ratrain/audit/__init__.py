"""Audits any decoder: builds it, calls it, and checks the contracts that every decoder should keep."""
