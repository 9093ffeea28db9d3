"""What drawing tokens takes."""
