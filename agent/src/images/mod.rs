//! Images: resolve, download, verify, unpack.
