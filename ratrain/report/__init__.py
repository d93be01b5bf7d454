"""What a run did, from its events alone: tables for a terminal, figures, one HTML page."""
