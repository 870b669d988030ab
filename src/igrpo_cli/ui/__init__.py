"""What people read: progress, quoted texts of models, and the screens of the commands that look into runs."""
