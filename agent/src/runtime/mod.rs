//! Containers and tasks through containerd.
