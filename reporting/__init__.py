"""What a person sees of a study; reads it, and never writes a trial's outcome."""
