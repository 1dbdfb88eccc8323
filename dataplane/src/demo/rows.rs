//! Reads a zone's rows straight from its SQLite files, while its log may be writing them.
