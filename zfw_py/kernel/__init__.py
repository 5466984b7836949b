"""The only folder that enters the kernel."""
