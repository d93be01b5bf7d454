"""Reports of runs and studies from events alone: tables for a terminal, figures, one HTML page."""
