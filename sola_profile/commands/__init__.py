"""The commands of ``sola-profile``, one file each; ``sola_profile.cli`` lists them."""
