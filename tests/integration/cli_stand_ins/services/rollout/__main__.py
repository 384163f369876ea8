"""Stand-in of the rollout."""

import stand_in

stand_in.serve("rollout")
