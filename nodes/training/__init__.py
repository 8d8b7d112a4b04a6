"""Training inside of ComfyUI: a UNet that lets gradients through, the data of a graph, a run that can be cancelled."""
