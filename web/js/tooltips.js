// Tooltips of the inputs that a choice of a combo brings, in the user's language. ComfyUI's front end translates all others
// itself; of these it shows the schema's own, which are English.
import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'

const translations = api.fetchApi('/i18n').then((response) => response.json())

app.registerExtension({
  name: 'SimpleGVR.Tooltips',
  async beforeRegisterNodeDef(nodeType, { name, input }) {
    if (!name.startsWith('SimpleGVR')) return
    const texts = (await translations)[app.extensionManager.setting.get('Comfy.Locale')]?.nodeDefs?.[name]?.inputs
    if (!texts) return
    for (const [combo, [type, { options }]] of Object.entries({ ...input.required, ...input.optional })) {
      for (const { inputs } of type === 'COMFY_DYNAMICCOMBO_V3' ? options : []) {
        for (const [inner, spec] of Object.entries({ ...inputs.required, ...inputs.optional })) {
          spec[1].tooltip = texts[`${combo}_${inner}`]?.tooltip ?? spec[1].tooltip
        }
      }
    }
  }
})
