"""Vision language models as the method sees them: backbone, readout, verbalizer, export."""
