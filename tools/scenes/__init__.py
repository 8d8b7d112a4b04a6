"""A toy world to train and measure on: scenes of coloured shapes, their captions, and what a picture of them shows.

A scene is drawn first (`scene`), then said in one of many wordings (`captions`) and painted on a small grid of cells
(`painting`). `detector` finds the objects of any picture again, and `verdict` compares them with the scene. All that is
random comes from a `random.Random`, so a seed gives the same scenes on every machine. `held_out` names the pairs of
objects and the wordings that training never shows.
"""
