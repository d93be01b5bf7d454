"""What commands print: tables, the text of a study, and standard output that ends early."""
