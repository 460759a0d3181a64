"""Sound: loading speech and the mel windows that the network hears."""
