// Previews of SimpleGVR Sampler are animated. The classic canvas would draw their first frame alone, so they are shown as the
// front end shows animated outputs, in an element of their own; Vue nodes do so anyway.
import { app } from "../../../scripts/app.js"

const WIDGET = "$$comfy_animation_preview" // the front end's name for that element
const HEIGHT = "--comfy-widget-min-height" // in pixels

function enlarge(node) {
  const style = node.widgets.find(({ name }) => name === WIDGET)?.element.style
  if (!style || style.getPropertyValue(HEIGHT)) return
  style.setProperty(HEIGHT, 220) // as tall as a still preview
  node.setDirtyCanvas(true, true)
}

app.registerExtension({
  name: "SimpleGVR.Preview",

  nodeCreated(node) {
    if (node.comfyClass !== "SimpleGVRSampler") return
    Object.defineProperty(node, "animatedImages", {
      get() {
        queueMicrotask(() => enlarge(node)) // the front end asks when it draws, just before it makes the element
        return Boolean(node.preview)
      },
      set() {},
    })
  },
})
