//! Everything that names a ring, a file, a socket, a clock or a database.

pub mod dir;
pub mod sqlite;
pub mod stream;
