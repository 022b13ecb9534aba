"""Every U-Net pipeline of diffusers, each as a tiny one that is run through its own `__call__`."""
