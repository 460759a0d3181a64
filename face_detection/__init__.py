"""Faces: detection, landmarks, and one person's track through a video."""
