"""The exported network as one HTML file that classifies pictures in a browser, without a server or a connection."""
