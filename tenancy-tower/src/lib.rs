//! tenancy-tower
