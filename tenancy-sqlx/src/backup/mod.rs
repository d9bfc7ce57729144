//! Backups of single tenants (feature `backup`): what an [archive] of one looks like, and the [keys](BackupKeys) that it is sealed with.

pub mod archive;
mod keys;

pub use keys::BackupKeys;
