"""The base model, construction with patches, cost counts, and text generation."""
