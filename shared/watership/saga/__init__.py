"""What users write and hold: sagas, steps, contexts, and the faces that run them."""
