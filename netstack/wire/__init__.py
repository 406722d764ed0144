"""Wire formats: one file per protocol, each header declared once."""
