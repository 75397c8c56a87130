"""Topology of the half MBB beam: which half of the material makes it stiff?"""
