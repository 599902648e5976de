//! The other ways to install it.

use super::*;
