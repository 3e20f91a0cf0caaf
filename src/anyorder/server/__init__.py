"""An HTTP server for every decoding method, in the shapes that clients of other servers expect."""
