"""Stand-in of the trainer."""

import stand_in

stand_in.serve("trainer")
