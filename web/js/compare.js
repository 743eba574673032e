// Plays before and after in a node, one over the other: the player of every node whose output has `simplegvr_compare`.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"

const NODES = ["SimpleGVRCompare", "SimpleGVRFlowDegrade", "SimpleGVRClassicalDegrade"]
const ZOOMS = [1, 2, 4, 8]
let players = 0 // made so far

const STYLE = `
.simplegvr-compare { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%; min-height: 0; font: 12px sans-serif }
.simplegvr-compare canvas { flex: 1; min-height: 0; width: 100%; object-fit: contain; background: #000; cursor: ew-resize; touch-action: none }
.simplegvr-compare div { display: flex; gap: 6px; align-items: center }
.simplegvr-compare input { flex: 1; min-width: 0 }
.simplegvr-compare button { min-width: 48px; padding: 2px 6px; cursor: pointer }
.simplegvr-compare :focus-visible { outline: 2px solid #4a9eff }`

function element(tag, attributes = {}, children = []) {
  const made = Object.assign(document.createElement(tag), attributes)
  made.append(...children)
  return made
}

function slider(label, max, step) {
  const made = element("input", { type: "range", min: 0, max, step, value: 0, title: label })
  made.setAttribute("aria-label", label)
  return made
}

/** A player: `element` to show, `show(file)` of a node's output, `close()`. node.properties keeps where its line is. */
function makePlayer(node) {
  const video = element("video", { muted: true, loop: true, playsInline: true })
  const canvas = element("canvas", { width: 16, height: 9 })
  const play = element("button", { type: "button" })
  const seek = slider("Frame", 0, 1)
  const frameLabel = element("span")
  const wipe = slider("Before | after", 1, 0.01)
  const zoom = element("button", { type: "button", title: "Zoom; the pointer moves the picture" })
  const root = element("div", { className: "simplegvr-compare" }, [
    canvas,
    element("div", {}, [play, seek, frameLabel]),
    element("div", {}, ["before", wipe, "after", zoom]),
  ])
  const focus = { x: 0.5, y: 0.5 }
  let file = null
  let factor = ZOOMS[0]
  let pending = 0

  const frame = () => Math.min(file.frames - 1, Math.floor(video.currentTime * file.fps + 0.01))

  function draw() {
    if (!file || video.readyState < 2) return
    const { width, height } = file
    const below = video.videoHeight / 2 // where after begins
    const context = canvas.getContext("2d")
    const [w, h] = [width / factor, height / factor]
    const [x, y] = [focus.x * (width - w), focus.y * (height - h)]
    const line = node.properties.wipe
    context.imageSmoothingEnabled = factor === 1
    context.drawImage(video, x, below + y, w, h, 0, 0, width, height)
    if (line > 0) context.drawImage(video, x, y, w * line, h, 0, 0, width * line, height)
    const thickness = Math.max(1, width / 400)
    context.fillStyle = "#fff"
    context.fillRect(width * line - thickness / 2, 0, thickness, height)
    seek.value = frame()
    frameLabel.textContent = `${frame() + 1} / ${file.frames}`
  }

  function tick() {
    draw()
    pending = video.paused ? 0 : requestAnimationFrame(tick)
  }

  function refresh() {
    play.textContent = video.paused ? "Play" : "Pause"
    zoom.textContent = `${factor}×`
    wipe.value = node.properties.wipe
    cancelAnimationFrame(pending)
    tick()
  }

  function moveLine(to) {
    node.setProperty("wipe", Math.min(1, Math.max(0, to)))
    wipe.value = node.properties.wipe
    draw()
  }

  /** Where in the picture a pointer is, from 0 to 1 along both sides, whatever the zoom of the graph. */
  function place(event) {
    const box = canvas.getBoundingClientRect()
    const scale = Math.min(box.width / canvas.width, box.height / canvas.height)
    const along = (at, start, size, pixels) => Math.min(1, Math.max(0, (at - start - size / 2) / (pixels * scale) + 0.5))
    return {
      x: along(event.clientX, box.left, box.width, canvas.width),
      y: along(event.clientY, box.top, box.height, canvas.height),
    }
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return
    event.stopPropagation()
    canvas.setPointerCapture(event.pointerId)
    moveLine(place(event).x)
  })
  canvas.addEventListener("pointermove", (event) => {
    const at = place(event)
    if (canvas.hasPointerCapture(event.pointerId)) moveLine(at.x)
    else Object.assign(focus, at)
    if (video.paused) draw()
  })
  wipe.addEventListener("input", () => moveLine(Number(wipe.value)))
  seek.addEventListener("input", () => {
    if (!file) return
    video.pause()
    video.currentTime = (Number(seek.value) + 0.5) / file.fps
  })
  play.addEventListener("click", () => (video.paused ? video.play() : video.pause()))
  zoom.addEventListener("click", () => {
    factor = ZOOMS[(ZOOMS.indexOf(factor) + 1) % ZOOMS.length]
    refresh()
  })
  root.addEventListener("keydown", (event) => {
    if ([" ", "Enter", "Delete", "Backspace"].includes(event.key) || event.key.startsWith("Arrow")) event.stopPropagation()
  })
  root.addEventListener("wheel", (event) => {
    if (!window.LiteGraph.vueNodesMode) app.canvas.processMouseWheel(event)
  })
  video.addEventListener("error", () => {
    if (file) frameLabel.textContent = "gone, or not playable in this browser"
  })
  for (const event of ["play", "pause", "seeked", "loadeddata"]) video.addEventListener(event, refresh)

  node.properties.wipe ??= 0.5
  refresh()
  return {
    element: root,
    show(next) {
      file = next
      Object.assign(canvas, { width: file.width, height: file.height })
      seek.max = file.frames - 1
      const { filename, subfolder, type } = file
      const rand = Math.random() // names come again once ComfyUI has started anew: the browser must not show what it kept
      video.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type, rand })}`)
      if (file.frames > 1) video.play().catch(() => {}) // a browser that forbids it shows the first frame and the button
    },
    close() {
      file = null
      cancelAnimationFrame(pending)
      video.pause()
      video.removeAttribute("src")
      video.load()
    },
  }
}

/** The key of a node's output in app.nodeOutputs. */
const locator = ({ graph, id }) => (!graph || graph.isRootGraph ? String(id) : `${graph.id}:${id}`)

app.registerExtension({
  name: "SimpleGVR.Compare",

  setup() {
    document.head.append(element("style", { textContent: STYLE }))
  },

  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return
    const player = makePlayer(node)
    // Vue nodes tell widgets apart by name: one of the same name, which an undo makes, would leave the player before it in sight
    node.addDOMWidget(`simplegvr_compare_${(players += 1)}`, "simplegvr_compare", player.element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => 240,
    })
    node.setSize([Math.max(node.size[0], 420), Math.max(node.size[1], node.computeSize()[1] + 60)])
    const { onAdded, onExecuted, onRemoved } = node
    let waiting = 0
    const show = (output) => {
      if (!output?.simplegvr_compare) return
      clearInterval(waiting)
      player.show(output.simplegvr_compare[0])
    }
    node.onAdded = function () {
      onAdded?.apply(this, arguments)
      clearInterval(waiting)
      // a workflow that is opened again, or an undo, makes new nodes and gives them their outputs some time later
      waiting = setInterval(() => show(app.nodeOutputs[locator(node)]), 500)
    }
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments)
      show(output)
    }
    node.onRemoved = function () {
      onRemoved?.apply(this, arguments)
      clearInterval(waiting)
      player.close()
    }
  },
})
