//! A database per test.
