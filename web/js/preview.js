// Previews of SimpleGVR Sampler are animated. The classic canvas would draw their first frame alone, so they are shown as the
// front end shows animated outputs, in an element of their own; Vue nodes do so anyway.
import { app } from "../../../scripts/app.js"

const WIDGET = "$$comfy_animation_preview" // the front end's name for it

function enlarge(node) {
  const widget = node.widgets.find(({ name }) => name === WIDGET)
  widget?.element.style.setProperty("--comfy-widget-min-height", 220) // pixels, as of a still preview
}

app.registerExtension({
  name: "SimpleGVR.Preview",

  nodeCreated(node) {
    if (node.comfyClass !== "SimpleGVRSampler") return
    Object.defineProperty(node, "animatedImages", {
      get: () => Boolean(node.preview),
      set: () => queueMicrotask(() => enlarge(node)), // the front end sets it before it makes the element
    })
  },
})
