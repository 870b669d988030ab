"""Problems in: named sets, files and Hub ids become `Problem` records; the rest is refused or counted."""
