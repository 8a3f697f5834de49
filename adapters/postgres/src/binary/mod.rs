//! Values in the binary form of the server.
