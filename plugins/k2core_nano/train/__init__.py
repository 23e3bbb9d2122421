"""Training of the embedded model: documents, model, optimiser, export."""
