"""Stand-in of the buffer."""

import stand_in

stand_in.serve("buffer")
