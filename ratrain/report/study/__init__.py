"""The report of a study: tables, verdicts, figures and the page."""
