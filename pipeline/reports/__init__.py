"""The report: one HTML page of pictures about a run, or about what differs between several."""
