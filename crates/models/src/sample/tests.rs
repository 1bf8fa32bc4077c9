//! Draws compared with the distributions and penalties they should follow.
