"""The layouts shared with the BPF programs, and the model to bytes and back."""
