//! The Imp network and its numerics. Knows nothing of pipelines.
