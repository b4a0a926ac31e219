//! LMDB: orders, histories, boot.
